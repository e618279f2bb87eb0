"""What every test relies on."""

import os

# One thread here and in every process that a test starts: the convolution library picks its algorithm by the number of
# threads, and equal pixels are promised for equal arithmetic.
os.environ["OMP_NUM_THREADS"] = "1"
