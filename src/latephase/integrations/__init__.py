"""Adapters for trainers; each module imports its trainer, and nothing here imports any."""
