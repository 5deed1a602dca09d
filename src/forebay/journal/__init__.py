"""What was acknowledged, kept until the database has it; and what the database refused.

Its door: `DeadLetters`, `encoded`, `FolderCheck`, `is_owned`, `is_written_out`, `Journal`, `journal_paths`,
`Journals`, `let_go`, `Letter`, `Orphan`, `reason_left_alone`, `reason_of`, `Record`, `search`, `SideJournal`,
`Unfit`.
"""
