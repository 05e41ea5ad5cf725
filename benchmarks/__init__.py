"""Measurements beside SpeechBrain's own modules; never a test."""
