"""Tests run with one thread each, set before any of them imports torch: their tensors are tiny."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not take the processor from others
