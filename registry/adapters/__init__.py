"""What an adapter's files say: configuration, tensors, card, trainer state. Bytes in, values out."""
