"""The course: assignments, the checks that students call in them, and the grader.

assignment1 to assignment4: the checks, one module per assignment; checks: what they are made of.
copies: from the instructor's notebooks to the students'. grade: a submission in a fresh kernel, or a class of them.
"""
