"""How the study is done: what is trained, the records it leaves, and what they are taken to say."""
