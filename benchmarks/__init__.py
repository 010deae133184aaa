"""What the package's speed was measured with, and what came out."""
