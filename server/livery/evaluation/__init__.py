"""How good adapters are, by a serving engine: perplexity on text and accuracy on tasks, of many adapters at once.

    report = await evaluate(scorer, variants, [Text(...), Task(...)])

`subjects` reads what they are measured on, `scorer` says what is asked of whoever computes (an engine in this process's
care, or a server), `evaluate` asks for all variants side by side, `statistics` says how sure the numbers are, `report`
is what was found. Knows no command line.
"""
