"""What keeps single batches from harming a training, and a training from diverging: updates left out, going back."""
