"""Results to what a person sees: tables, pictures, an HTML report."""
