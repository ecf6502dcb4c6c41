"""What only a GPU can show: kernels against fp32, FP8 and its scales, the memory and time of long answers."""
