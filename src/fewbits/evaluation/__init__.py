"""How good a network is: accuracy and loss, and both under noise on its weights."""
