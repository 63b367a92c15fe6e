"""Tool calls in a model's text: one module per format that model families write them in, and what they share.

`formats` lists them, `events` says what a parser answers, `marked` reads all of them, `use` is what a request asks for.
Knows no engine, no tokenizer and no HTTP.
"""
