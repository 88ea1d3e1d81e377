"""What a trained run is worth beyond its accuracy: `latephase evaluate`."""
