"""The support of a sampling policy: which tokens it can sample, and sums over them.

`nucleus` finds the nucleus without sorting the vocabulary, by the largest logits of each row
(`top_logits`); `sums` are the sums that log q and its statistics are made of. The policy itself is
in `seqproc.policy`.
"""
