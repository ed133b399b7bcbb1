"""Makes of results what a person sees: tables, pictures, an HTML report."""
