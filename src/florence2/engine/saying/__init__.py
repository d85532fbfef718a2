"""How the next token of every slot is found: the decoder's odds, and the search among them."""
