"""CUDA's libraries as stubs, over which ONNX Runtime's real CUDA provider opens sessions where no GPU is.

Memory is the host's, kernels do nothing: what is computed means nothing, and which nodes the provider takes is real.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from filelock import FileLock

NAME = re.compile(rb"(?<![A-Za-z0-9_])((?:cudnn|cufft|nvrtc|cu)[A-Z][A-Za-z0-9_]{3,60})\0")
OPENED = ("libcuda.so.1", "libcudnn.so.9", "libcufft.so.11", "libcufft.so.12")  # by name, while it runs
# Of the compiler's own headers, which are in no wheel of the runtime's, as much as the runtime's ask for.
DEFINES = """
#define __host__
#define __device__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
"""
# What must answer something: a device, memory, handles. Everything else says that it went well.
SOURCE = r"""
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#undef cudaGetDeviceProperties
typedef cudaError_t E;
static int nothing(void) { return 0; }
static void *module[64];
void **__cudaRegisterFatBinary(void *p) { return module; }
static E properties(struct cudaDeviceProp *p) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stub");
  p->major = 8, p->minor = 6, p->warpSize = 32, p->multiProcessorCount = 108;
  p->totalGlobalMem = 24ull << 30, p->l2CacheSize = 40 << 20;
  p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = 160 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = 1024, p->maxThreadsPerMultiProcessor = 2048;
  p->maxGridSize[0] = 2147483647;
  return 0;
}
E cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) { return properties(p); }
E cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return properties(p); }
E cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  *v = a == cudaDevAttrComputeCapabilityMajor ? 8 : a == cudaDevAttrComputeCapabilityMinor ? 6
     : a == cudaDevAttrMultiProcessorCount ? 108 : a == cudaDevAttrWarpSize ? 32
     : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 160 << 10 : 0;
  return 0;
}
E cudaGetDeviceCount(int *n) { *n = 1; return 0; }
E cudaGetDevice(int *n) { *n = 0; return 0; }
E cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return 0; }
E cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return 0; }
E cudaMemGetInfo(size_t *f, size_t *t) { *f = 20ull << 30, *t = 24ull << 30; return 0; }
E cudaMalloc(void **p, size_t n) { return (*p = aligned_alloc(256, (n + 511) / 256 * 256)) ? 0 : 2; }
E cudaMallocHost(void **p, size_t n) { return cudaMalloc(p, n); }
E cudaHostAlloc(void **p, size_t n, unsigned f) { return cudaMalloc(p, n); }
E cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
E cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t q, cudaStream_t s) { return cudaMalloc(p, n); }
E cudaFree(void *p) { free(p); return 0; }
E cudaFreeHost(void *p) { free(p); return 0; }
E cudaFreeAsync(void *p, cudaStream_t s) { free(p); return 0; }
E cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { memmove(d, s, n); return 0; }
E cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) {
  return cudaMemcpy(d, s, n, k);
}
E cudaMemset(void *d, int c, size_t n) { memset(d, c, n); return 0; }
E cudaMemsetAsync(void *d, int c, size_t n, cudaStream_t t) { memset(d, c, n); return 0; }
E cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  return 0;
}
E cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = 0; return 0; }
E cudaGetDriverEntryPoint(const char *n, void **f, unsigned long long m, enum cudaDriverEntryPointQueryResult *r) {
  *f = (void *)nothing;
  if (r) *r = 0;
  return 0;
}
E cudaGetDriverEntryPointByVersion(
    const char *n, void **f, unsigned v, unsigned long long m, enum cudaDriverEntryPointQueryResult *r) {
  return cudaGetDriverEntryPoint(n, f, m, r);
}
"""
OWN = set(re.findall(r"^(?:E|void \*\*)\s?(\w+)\(", SOURCE, re.MULTILINE))


def installed(folder: Path, *requirements: str) -> Path:
    """A folder to be on Python's path, with these packages and nothing else; skips where they cannot be had."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", part, *requirements]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip cannot install {', '.join(requirements)}: {done.stderr.strip()[-200:]}")
            part.rename(folder)
    return folder


def environment(packages: Path, cache: Path) -> dict[str, str]:
    """Of a process in which ONNX Runtime is that in ``packages``, and finds the stubs, which are kept in ``cache``."""
    if missing := [tool for tool in ("gcc", "nm", "readelf") if not shutil.which(tool)]:
        pytest.skip(f"no {missing[0]} here to build CUDA's stubs with")
    provider = packages / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    if not provider.exists():
        pytest.skip(f"{packages}: this ONNX Runtime has no CUDA provider")
    needed = re.findall(r"\(NEEDED\).*\[(lib(?:cu|nv)\S*)\]", _said("readelf", "-d", provider))
    version = next(name for name in needed if name.startswith("libcudart")).rpartition(".")[2]
    wheel = "nvidia-cuda-runtime" + ("-cu12" if version == "12" else f"=={version}.*")
    headers = next(installed(cache / f"cuda-{version}", wheel).glob("nvidia/*/include"))
    folder = cache / f"stubs-{hashlib.sha256(os.fsencode(provider)).hexdigest()[:12]}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _build(provider, needed, headers, part)
            part.rename(folder)
    return os.environ | {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(folder)}


def _build(provider: Path, needed: list[str], headers: Path, folder: Path) -> None:
    """One library for each that the provider is linked with, and one for each that it opens by name."""
    runtime = next(name for name in needed if name.startswith("libcudart"))
    (folder / "crt").mkdir()
    for name in ("host_defines.h", "host_config.h"):
        (folder / "crt" / name).write_text(DEFINES, "utf-8")
    symbols: dict[str, set[str]] = defaultdict(set, {name: set() for name in needed})
    for name, version in re.findall(r" [Uw] (\w+)(?:@(\S+))?$", _said("nm", "-D", "--undefined-only", provider), re.M):
        if version in needed or name.startswith(("cu", "nv", "__cuda")):
            symbols[version if version in needed else runtime].add(name)
    for library, names in symbols.items():
        _compile(folder, library, headers, sorted(names - OWN), SOURCE if library == runtime else "")
    names = sorted(name.decode() for name in set(NAME.findall(provider.read_bytes())))
    for library in set(OPENED) - symbols.keys():
        _compile(folder, library, headers, sorted({*names, "cuInit"}))


def _stub(name: str) -> str:
    if name == "cudnnGetVersion":
        return "unsigned long cudnnGetVersion(void) { return 91000; }"
    if name == "cudnnGetCudartVersion":
        return "unsigned long cudnnGetCudartVersion(void) { return 13000; }"
    if re.search(r"Error(String|Name)|StatusString|StatusName", name):
        return f'const char *{name}(void) {{ return "a stub\'s"; }}'
    if re.search(r"Create(WithFlags)?(_v\d)?$", name):
        return f"int {name}(void **p) {{ if (p) *p = (void *)4096; return 0; }}"
    return f"int {name}(void) {{ return 0; }}"


def _compile(folder: Path, library: str, headers: Path, names: list[str], source: str = "") -> None:
    """Apart from the ``source``, whose headers declare what the stubs are called."""
    codes, versions = [folder / f"{library}.{part}.c" for part in ("own", "stubs")], folder / f"{library}.map"
    for code, text in zip(codes, (source, "\n".join(map(_stub, names))), strict=True):
        code.write_text(text + "\n", "utf-8")
    versions.write_text(f"{library} {{ global: *; }};\n", "utf-8")
    options = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    subprocess.run(["gcc", *options, f"-I{folder}", f"-I{headers}", *codes, "-o", folder / library], check=True)


def _said(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout

