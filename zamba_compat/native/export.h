#ifndef ZAMBA_COMPAT_EXPORT_H
#define ZAMBA_COMPAT_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#endif
