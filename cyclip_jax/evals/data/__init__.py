"""What is evaluated on: labelled pictures, pairs, and what their classes are called."""
