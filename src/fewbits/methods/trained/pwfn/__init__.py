"""PWFN: probabilistic weight fixing (Subia-Waud and Dasmahapatra 2023)."""
