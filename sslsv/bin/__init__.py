"""Scripts: ``python sslsv/bin/train.py CONFIG`` works from a clone without installing."""
