if(NOT EXISTS ${EXTENSION_LICENSE_FILE})
  message(FATAL_ERROR "the licence ${EXTENSION_LICENSE_FILE} is not there")
endif()
