option(NIBBLE_CUDA_NEEDED "Fail where there is no compiler for CUDA" OFF)
if(NIBBLE_CUDA_NEEDED)
  set(without FATAL_ERROR)
else()
  set(without STATUS)
endif()

# Sets NIBBLE_CUDA where nvcc 12.8 or newer is found: CUDA_HOME, build/cuda (made by `make cuda`), the
# PATH, /usr/local/cuda. Says why where it is not.
find_program(NIBBLE_NVCC nvcc
  HINTS $ENV{CUDA_HOME}/bin ${CMAKE_SOURCE_DIR}/build/cuda/nvidia/cu13/bin
  PATHS /usr/local/cuda/bin
  DOC "The compiler for CUDA")
set(NIBBLE_CUDA OFF)
if(NOT NIBBLE_NVCC)
  message(${without} "CUDA: no nvcc, so the build is for the CPU alone (make cuda fetches one)")
  return()
endif()
execute_process(COMMAND ${NIBBLE_NVCC} --version OUTPUT_VARIABLE nvcc_version)
string(REGEX REPLACE ".*release ([0-9]+\\.[0-9]+).*" "\\1" nvcc_version "${nvcc_version}")
if(nvcc_version VERSION_LESS 12.8)
  message(${without} "CUDA: ${NIBBLE_NVCC} is ${nvcc_version} and 12.8 is needed, so the build is for the "
    "CPU alone (make cuda fetches a newer one)")
  return()
endif()
set(CMAKE_CUDA_COMPILER ${NIBBLE_NVCC})
set(CMAKE_CUDA_ARCHITECTURES OFF)  # src/backend/cuda passes them: this CMake does not know 120f
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
if(CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has it.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
set(NIBBLE_CUDA ON)
message(STATUS "CUDA: ${NIBBLE_NVCC} ${nvcc_version}")
