//! Aligned columns for people.

use std::fmt;

use crate::text::harmless;

/// Rows under headings. Columns in which no row has anything are not shown.
#[derive(Debug)]
pub struct Table {
    headings: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Column {
    heading: &'static str,
    is_right: bool,
}

impl Table {
    /// Columns with numbers begin with `>` and are aligned to the right.
    #[must_use]
    pub fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &&'static str| Column {
            heading: heading.trim_start_matches('>'),
            is_right: heading.starts_with('>'),
        };
        Self {
            headings: headings.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell for each column.
    ///
    /// # Panics
    /// If there are more cells, or fewer.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().map(|cell| harmless(&cell)).collect();
        assert_eq!(row.len(), self.headings.len(), "a cell for each column");
        self.rows.push(row);
    }

    /// Whether it has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many characters the column has, or `None` if there is nothing in it.
    fn width(&self, column: usize) -> Option<usize> {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        let widest = cells.max().filter(|&width| width > 0)?;
        Some(widest.max(self.headings[column].heading.len()))
    }

    fn line<'a>(&self, cell: impl Fn(usize) -> &'a str) -> String {
        let mut line = String::new();
        for (index, column) in self.headings.iter().enumerate() {
            let Some(width) = self.width(index) else {
                continue;
            };
            let text = cell(index);
            line += &match column.is_right {
                true => format!("{text:>width$}  "),
                false => format!("{text:width$}  "),
            };
        }
        line.trim_end().to_owned()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.line(|column| self.headings[column].heading))?;
        for row in &self.rows {
            writeln!(f, "{}", self.line(|column| &row[column]))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> String {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        for row in rows {
            table.row(row.map(str::to_owned));
        }
        table.to_string()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let expected = "\
NAME         SIZE  STATE
disk0      64 MiB  open
größer-12    1 TB  closed
";
        let rows = [["disk0", "64 MiB", "open"], ["größer-12", "1 TB", "closed"]];
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn columns_without_anything_in_them_are_not_shown() {
        let rows = [["disk0", "", "open"], ["disk1", "", ""]];
        assert_eq!(table(&rows), "NAME   STATE\ndisk0  open\ndisk1\n");
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let rows = [["a\nb", "1", "\u{1b}[31m"]];
        assert_eq!(table(&rows).lines().count(), 2);
        assert!(!table(&rows).contains('\u{1b}'));
    }
}
