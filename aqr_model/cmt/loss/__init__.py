"""The training loss: matching, denoising, and the counts that they divide by."""
