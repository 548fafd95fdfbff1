"""The course: assignments, the checks that students call in them, and the grader.

- assignment1 to assignment4: the checks, one module per assignment. checks: what they are made of.
- copies: from the instructor's notebooks to the students'.
- cli: the commands. grade: a submission, or a class. grading: one submission in its process.
  instructor: an assignment as the grader reads it. submissions: what was handed in.
- roster: who is in the class. owners: whose a submission is. rules: what is late, what counts.
- report, marks: what is written about it. platforms: tables for Canvas and Moodle.
- mistakes: those that the checks recognise. messages: what students are told.
- wall: what a submission's process may see and do. session: the process from outside. folders: its
  folder on the disk.
- enter, kernel, judge, watch, pristine: the process from inside, from its limits to its verdicts.
"""
