//! Errors of a configuration: every mistake with its place and a hint.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, Severity, SourceCode, SourceSpan, SpanContents,
};
use serde::Serialize;

/// A text that was read: the configuration file, an `env_file`, or the command line.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub text: String,
    name: String,
    /// Shows the place itself only, not its whole line.
    excerpt: bool,
}

impl Source {
    pub fn new(path: &Path, text: &str) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            text: text.to_owned(),
            name: path.display().to_string(),
            excerpt: false,
        })
    }

    /// A text whose other words are long or secret.
    pub fn excerpt(path: &Path, text: &str) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            text: text.to_owned(),
            name: path.display().to_string(),
            excerpt: true,
        })
    }
}

impl SourceCode for Source {
    /// With context: the whole lines of the place, but not those around. Without: the place itself,
    /// which the header names.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context: usize,
        _: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (mut start, mut end) = (
            span.offset().min(self.text.len()),
            (span.offset() + span.len()).min(self.text.len()),
        );
        if let (true, Some(before), Some(after)) = (
            context > 0 && !self.excerpt,
            self.text.get(..start),
            self.text.get(end..),
        ) {
            start = before.rfind('\n').map_or(0, |i| i + 1);
            end += after.find('\n').unwrap_or(after.len());
        }
        let lines = self.text.read_span(&(start..end).into(), 0, 0)?;
        let name = self.name.clone();
        let (line, column) = (lines.line(), lines.column());
        Ok(Box::new(MietteSpanContents::new_named(
            name,
            lines.data(),
            *lines.span(),
            line,
            column,
            lines.line_count(),
        )))
    }
}

/// One mistake, or one warning.
#[derive(Clone, Debug)]
pub struct CliError {
    source: Arc<Source>,
    warning: bool,
    /// Bytes of the text; `None` for a problem of the file as a whole.
    span: Option<Range<usize>>,
    also: Option<(Range<usize>, String)>,
    /// For a mistake in another text: the byte of the configuration that names that text.
    reached_from: Option<usize>,
    message: String,
    hint: Option<String>,
}

/// A [`CliError`] as data, for `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `error` or `warning`.
    pub severity: &'static str,
    pub file: PathBuf,
    /// From 1; `None` for a problem of the file as a whole.
    pub line: Option<usize>,
    /// In characters, from 1.
    pub column: Option<usize>,
    pub message: String,
    pub hint: Option<String>,
}

impl CliError {
    pub(super) fn error(source: &Arc<Source>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            source: source.clone(),
            warning: false,
            span: None,
            also: None,
            reached_from: None,
            message,
            hint: None,
        }
    }

    pub(super) fn into_warning(mut self) -> Self {
        self.warning = true;
        self
    }

    pub(super) fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    pub(super) fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.also = Some((span, label.into()));
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn reached_from(mut self, at: usize) -> Self {
        self.reached_from = Some(at);
        self
    }

    /// Its position among the problems of the same configuration.
    pub(super) fn order(&self) -> usize {
        self.reached_from
            .or(self.span.as_ref().map(|span| span.start))
            .unwrap_or(0)
    }

    /// The problem in one sentence, without its place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The problem as plain data.
    pub fn finding(&self) -> Finding {
        let place = self
            .span
            .as_ref()
            .map(|span| place(&self.source.text, span.start));
        Finding {
            severity: if self.warning { "warning" } else { "error" },
            file: self.source.path.clone(),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            message: self.message.clone(),
            hint: self.hint.clone(),
        }
    }

    /// Whether every place lies within its text, on character boundaries.
    #[doc(hidden)]
    pub fn fits(&self) -> bool {
        let spans = self
            .span
            .iter()
            .chain(self.also.iter().map(|(span, _)| span));
        spans
            .into_iter()
            .all(|span| self.source.text.get(span.clone()).is_some())
    }

    /// Renders the problem with the line of the file and a caret under the mistake.
    pub fn render(&self, color: bool) -> String {
        let theme = if color {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_context_lines(1)
            .with_wrap_lines(false);
        let mut out = String::new();
        match handler.render_report(&mut out, self) {
            Ok(()) => out,
            Err(_) => format!("{self}\n"),
        }
    }
}

/// Line and column, both from 1, of a byte of the text.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    (
        before.matches('\n').count() + 1,
        before[start..].chars().count() + 1,
    )
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.span.is_none() {
            write!(f, "{}: ", self.source.path.display())?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

impl Diagnostic for CliError {
    fn severity(&self) -> Option<Severity> {
        Some(if self.warning {
            Severity::Warning
        } else {
            Severity::Error
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint.as_ref().map(|hint| Box::new(hint) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.span
            .is_some()
            .then_some(&*self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let here = self
            .span
            .clone()
            .map(|span| LabeledSpan::new_primary_with_span(None, span));
        let also = self
            .also
            .clone()
            .map(|(span, label)| LabeledSpan::new_with_span(Some(label), span));
        Some(Box::new(here.into_iter().chain(also)))
    }
}

/// All mistakes of a configuration at once, in the order of the file.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    problems: Vec<CliError>,
}

impl ConfigErrors {
    /// Takes at least one error; warnings among `problems` are shown too.
    pub(super) fn new(problems: Vec<CliError>) -> Self {
        Self { problems }
    }

    /// Number of errors; warnings don't count.
    #[allow(clippy::len_without_is_empty, reason = "there is always one at least")]
    pub fn len(&self) -> usize {
        self.problems.iter().filter(|p| !p.warning).count()
    }

    /// Every error, and the warnings of the same file.
    pub fn iter(&self) -> impl Iterator<Item = &CliError> {
        self.problems.iter()
    }

    /// As plain data, for `--json`.
    pub fn findings(&self) -> Vec<Finding> {
        self.problems.iter().map(CliError::finding).collect()
    }

    /// Every problem with its line and a caret under it, and a last line that counts them.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        for problem in &self.problems {
            out.push_str(problem.render(color).trim_end());
            out.push_str("\n\n");
        }
        out.push_str(&match self.len() {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        });
        match self.problems.len() - self.len() {
            0 => {}
            1 => out.push_str(", 1 warning"),
            n => out.push_str(&format!(", {n} warnings")),
        }
        out.push('\n');
        out
    }
}

impl fmt::Display for ConfigErrors {
    /// One line for each problem: `file:line:column: message (hint)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            let finding = problem.finding();
            write!(f, "{}:", finding.file.display())?;
            if let (Some(line), Some(column)) = (finding.line, finding.column) {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " {}", finding.message)?;
            if let Some(hint) = finding.hint {
                write!(f, " ({hint})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
