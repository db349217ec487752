"""Allocations that fail: the n-th one, for every n."""

import ctypes
import shutil
import subprocess

PRELOADED = """
#include <stddef.h>
#include <errno.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
static _Thread_local long left = -1;

/* Lets the n-th of this thread's allocations from now on fail; -1: none. */
void fail_at(long n) { left = n; }

static int fails(void) {
  if (left < 0 || left-- > 0) return 0;
  errno = ENOMEM;
  return 1;
}

void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t n) { return fails() ? NULL : __libc_realloc(old, n); }
"""


def preloaded(folder):
    """Return the path of a library for LD_PRELOAD whose `fail_at` lets malloc fail, or None."""
    if not shutil.which("cc"):
        return None
    source, library = folder / "failing.c", folder / "failing.so"
    source.write_text(PRELOADED)
    done = subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source],
                          capture_output=True)
    return None if done.returncode else str(library)


class Python:
    """Python's own allocations: objects, and what the interpreter keeps."""

    def arm(self, n):
        import _testcapi

        _testcapi.set_nomemory(n, n + 1)

    def disarm(self):
        import _testcapi

        _testcapi.remove_mem_hooks()


class Malloc:
    """The C library's: the data of arrays, and whatever is larger than 512 bytes."""

    def __init__(self):
        self.fail_at = ctypes.PyDLL(None).fail_at
        self.fail_at.argtypes = (ctypes.c_long,)
        self.fail_at.restype = None

    def arm(self, n):
        self.fail_at(n)

    def disarm(self):
        self.fail_at(-1)


def every_failure(name, act, check, where=None, most=5000, least=1):
    """Call act() with its n-th allocation failing, for n from 0 until it succeeds; check each.

    At least `least` calls must have failed, so that the test has tested something.
    `check(result)` gets None after a MemoryError. It runs with memory enough.
    """
    where, failed = where or Python(), 0
    for n in range(most):
        print(name, n, flush=True)
        where.arm(n)
        try:
            result = act()
        except MemoryError:
            result = None
        finally:
            where.disarm()
        check(result)
        if result is not None:
            # the one that failed may have been one that Python does without
            if n > failed + 20:
                assert failed >= least, f"{name}: no allocation failed"
                return failed
        else:
            failed += 1
    raise AssertionError(f"{name} never succeeded")
