# Included by llama-cpp-python's own CMakeLists at its start (CMAKE_PROJECT_INCLUDE). It forces this
# cache variable ON, which compiles llama.cpp's library for command-line programs; a plain variable
# comes before the cache (policies CMP0077 and CMP0126). The Python package does not load that library.
set(LLAMA_BUILD_COMMON OFF)
