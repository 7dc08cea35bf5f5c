set(EXTENSION_NAME ${PROJECT_NAME})
if(EXTENSION_NAME MATCHES "^$|^Slicer$|^Project$")
  message(FATAL_ERROR "Make sure to call 'project(<extension_name>)'")
endif()
foreach(key DEPENDS LICENSE_FILE README_FILE)
  if(NOT DEFINED EXTENSION_${key})
    set(EXTENSION_${key} NA)
  endif()
endforeach()
include(CTest)

# Copies what is listed, by its path relative to the current folder, into the build tree; that folder is installed.
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY_SLICER "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_SLICER_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown keywords given to slicerMacroBuildScriptedModule(): ${MY_SLICER_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT DEFINED MY_SLICER_NAME OR NOT DEFINED MY_SLICER_SCRIPTS)
    message(FATAL_ERROR "NAME and SCRIPTS are mandatory")
  endif()
  set(_folder ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
  set(_whole /)
  if(MY_SLICER_WITH_SUBDIR)
    get_filename_component(_name ${CMAKE_CURRENT_SOURCE_DIR} NAME)
    set(_folder ${_folder}/${_name})
    set(_whole "")
  endif()
  set(scripts) # the real macro leaves this behind in the caller's scope
  set(_copied)
  foreach(file ${MY_SLICER_SCRIPTS} ${MY_SLICER_RESOURCES})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "slicerMacroBuildScriptedModule given nonexistent file or directory '${file}'")
    endif()
    add_custom_command(
      OUTPUT ${_folder}/${file}
      COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_CURRENT_SOURCE_DIR}/${file} ${_folder}/${file}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
    )
    list(APPEND _copied ${_folder}/${file})
  endforeach()
  add_custom_target(Copy${MY_SLICER_NAME}PythonScriptFiles ALL DEPENDS ${_copied})
  install(
    DIRECTORY ${_folder}${_whole}
    DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}
    COMPONENT RuntimeLibraries
    USE_SOURCE_PERMISSIONS
  )
endmacro()

macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  get_filename_component(_test ${MY_SCRIPT} NAME_WE)
  get_filename_component(_source ${MY_SCRIPT} PATH)
  if("${_source}" STREQUAL "")
    set(_source ${CMAKE_CURRENT_SOURCE_DIR})
  endif()
  add_test(
    NAME py_${MY_TESTNAME_PREFIX}${_test}
    COMMAND ${Slicer_LAUNCHER_EXECUTABLE} --no-splash --testing ${MY_SLICER_ARGS}
            --additional-module-paths ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
            --python-code "import slicer.testing; slicer.testing.runUnitTest(['${_source}'], '${_test}')"
  )
endmacro()
