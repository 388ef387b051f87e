"""Methods that train: HEMP, LowBit, PWFN, and the protocol they share."""
