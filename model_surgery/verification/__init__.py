"""Does a layout compute what its source computes?"""
