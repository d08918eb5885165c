"""`vidtwin doctor`: what would go wrong, before hours are spent."""
