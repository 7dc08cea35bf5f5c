# A stand-in for Slicer's build tree, for extensions of scripted modules. It does what Slicer 5's published CMake files do
# (SlicerConfig, UseSlicer, SlicerMacroBuildScriptedModule, SlicerMacroPythonTesting, CTK's ctkMacroCompilePythonScript)
# as far as such an extension can tell, and refuses what they refuse.

# The real one looks for VTK, ITK and CTK.
foreach(language C CXX)
  if(NOT CMAKE_${language}_COMPILER_LOADED)
    message(FATAL_ERROR "Slicer's libraries are looked for with the language ${language}, which project() did not enable")
  endif()
endforeach()

set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Pack.cmake)
set(Slicer_LAUNCHER_EXECUTABLE Slicer)
set(Slicer_USE_PYTHONQT ON)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.10/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ./${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
