"""What a run leaves behind: model folders now; resumable checkpoints have their place here."""
