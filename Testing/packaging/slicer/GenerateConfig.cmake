# The description that goes into the package.
set(_lines)
foreach(key CATEGORY CONTRIBUTORS DEPENDS DESCRIPTION HOMEPAGE ICONURL LICENSE_FILE README_FILE SCREENSHOTURLS)
  string(APPEND _lines "${key} ${EXTENSION_${key}}\n")
endforeach()
file(WRITE ${CMAKE_BINARY_DIR}/${EXTENSION_NAME}.s4ext "${_lines}")
