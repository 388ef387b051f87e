"""Methods that train, HEMP, LowBit and PWFN, and the protocol they share."""
