"""Small public-domain texts for tests (Carroll 1865, Austen 1813, Lincoln 1863), and odd ones."""

ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    'no pictures or conversations in it, "and what is the use of a book," thought Alice "without '
    'pictures or conversations?"\n'
    "So she was considering in her own mind (as well as she could, for the hot day made her feel "
    "very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the "
    "trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes "
    "ran close by her.\n"
    "There was nothing so very remarkable in that; nor did Alice think it so very much out of the "
    'way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!"'
)
PRIDE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife.\n"
    "However little known the feelings or views of such a man may be on his first entering a "
    "neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he "
    "is considered the rightful property of some one or other of their daughters."
)
GETTYSBURG = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
    "conceived in Liberty, and dedicated to the proposition that all men are created equal."
)
ODD = (
    "na\u00efve caf\u00e9 e\u0301 \u6211\u4eec\u662f \U0001f642\U0001f469\u200d\U0001f680 x\u00a0y"
    "\r\n\ttabs  and   runs\n\n</s><s> it's 3.14159 \u0645\u0631\u062d\u0628\u0627"
)
ALL = (ALICE, PRIDE, GETTYSBURG, ODD)
