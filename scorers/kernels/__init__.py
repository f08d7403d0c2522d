"""Optional speed: computes what PyTorch computes, faster or to the same bits.

Scoring is right without any of it; README.md beside this file says what each part gains, and how to
switch it off.
"""
