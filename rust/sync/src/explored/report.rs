//! An execution as text: for each thread what it did, the value, and where the value came from.

use core::fmt::Write;

use super::{
    clock::EventId,
    event::{Action, Event, Half, Order, Source},
    graph::Graph,
};
use crate::Ordering;

/// A word for the reader: where it was made, and which of those made there it is.
fn names(words: &[&'static core::panic::Location<'static>]) -> Vec<String> {
    let name = |(number, at): (usize, &&'static core::panic::Location<'static>)| {
        let before = words[..number].iter().filter(|other| *other == at).count();
        let file = at.file().rsplit('/').next().unwrap_or_default();
        format!("{file}:{}#{before}", at.line())
    };
    words.iter().enumerate().map(name).collect()
}

fn spelled(order: Order) -> &'static str {
    match order {
        None => "plain",
        Some(Ordering::Relaxed) => "Relaxed",
        Some(Ordering::Acquire) => "Acquire",
        Some(Ordering::Release) => "Release",
        Some(Ordering::AcqRel) => "AcqRel",
        Some(_) => "SeqCst",
    }
}

fn event_name(id: EventId) -> String {
    format!("{}.{}", id.thread, id.index)
}

/// One line an event; events are named by thread and position, and stand in the order in which they were found.
pub(super) fn dump(graph: &Graph, words: &[&'static core::panic::Location<'static>]) -> String {
    let names = names(words);
    let mut text = String::new();
    for (number, thread) in graph.threads.iter().enumerate() {
        let _ = writeln!(text, "thread {number} ({:?}):", thread.status);
        for (index, event) in thread.events.iter().enumerate() {
            let _ = writeln!(text, "  {}", line(graph, EventId::new(number, index), event, &names));
        }
    }
    for (word, name) in names.iter().enumerate() {
        let writes = graph.writes(word as u32);
        if writes.len() > 1 {
            let order: Vec<_> = writes.iter().map(|&write| event_name(write)).collect();
            let _ = writeln!(text, "order of the writes to {name}: {}", order.join(", "));
        }
    }
    text
}

fn line(graph: &Graph, id: EventId, event: &Event, names: &[String]) -> String {
    let own = event_name(id);
    let file = event.at.file().rsplit('/').next().unwrap_or_default();
    let at = format!("{file}:{}", event.at.line());
    match event.action {
        Action::Fence { order } => format!("{own:>5}  fence({order:?})  at {at}"),
        Action::Write { word, value, order, locked } => {
            let what = if locked { "modify" } else { "store" };
            format!("{own:>5}  {what} {} = {value:#x}  {}  at {at}", names[word as usize], spelled(order))
        }
        Action::Read { word, order, half, .. } => {
            let what = if half == Half::No { "load" } else { "exchange" };
            let found = match event.source {
                Source::Waits => "waits".to_owned(),
                Source::Initial => format!("= {:#x} from the start", event.value),
                Source::Write(write) => format!("= {:#x} from {}", event.value, event_name(write)),
            };
            let old = graph.place(id).is_some_and(|place| place < graph.latest(word));
            let note = if old { " (an older write)" } else { "" };
            format!("{own:>5}  {what} {} {found}{note}  {}  at {at}", names[word as usize], spelled(order))
        }
    }
}
