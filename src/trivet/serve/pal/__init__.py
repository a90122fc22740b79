"""Program-aided answers: the model writes a program, the sandbox runs it, and its result is the answer.

Gao et al. 2022, 'PAL: Program-aided Language Models'; Chen et al. 2022, 'Program of Thoughts Prompting'.
"""
