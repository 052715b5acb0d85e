#ifndef ZAMBA_COMPAT_EXPORT_H
#define ZAMBA_COMPAT_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

#endif
