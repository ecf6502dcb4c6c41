"""What is found on text that no score is taken on: softmax scales, and LongRoPE2's factors."""
