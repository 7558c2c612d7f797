"""What a box is to the decoder: ten regression slots, and back to boxes with scores."""
