"""The work of each verb, once its options are parsed."""
