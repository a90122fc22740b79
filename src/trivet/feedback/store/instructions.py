"""What a labeler is told where the admin has written nothing else: the notes' five rules in our own words."""

DEFAULT_INSTRUCTIONS = """\
## How to rank

Order the answers by **which of them serves the person who wrote the prompt best**: 1 is the best.

1. **What makes an answer good?** First, that it is *correct*; then, that it is *informative*: it tells what was asked
   for, in enough depth to be of use. Where you are not sure of a fact, look it up: you may search the web, and the
   *search* link opens the prompt in a search engine. In the end use your own judgment: the most useful answer wins,
   and useful means right at least in the main, and saying at least something to the point.
2. **Ties, sparingly.** Two answers that are equally correct and equally informative, with no winner in sight, may get
   the same rank. Look twice before you use it: most pairs have a better half.
3. **F for fail.** An answer that is nonsense, off the topic, so ungrammatical or confused that it cannot be followed,
   or that plainly does not respond to the prompt, gets **F** in place of a rank.
4. **Longer is not better.** An answer that says the same in fewer words, clearly and in order, may stand above a long
   one, as long as it is as correct and as informative.
5. **Helpful, honest, harmless.** An answer that invents facts is not honest; one that aids in hurting somebody is not
   harmless, however well it is written.

Not able to judge a prompt (a language you do not read, a field you do not know, text that upsets you)? *Skip* it and
say why. Made a mistake? *Undo* takes back the last answer, and your history lets you mend earlier ones.
"""
