"""Run target networks of ever new architectures on compiled programs that they share."""
