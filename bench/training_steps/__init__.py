"""The parts of bench/guided_training.py: guided and unguided training steps, measured."""
