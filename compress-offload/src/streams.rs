//! The streams of a queue.
//!
//! A stream belongs to the queue that opened it, and so to one worker; it travels with its task, and while it is away the
//! requests that come for it wait here. So they are computed one after another in the order in which they were made
//! available, whoever computes them. The table outlives the ring: a guest that is paused finds its streams again.
//!
//! What a table holds is bounded by the device's [`Limit`].

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many streams a device may have open, over all queues.
#[derive(Clone, Debug)]
pub struct Limit {
    open: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
}

/// The right to have a stream open; dropped when it is not any more.
#[derive(Debug)]
pub struct Permit(Arc<AtomicU32>);

impl Limit {
    /// So many.
    pub fn new(most: u32) -> Self {
        Self { open: Arc::default(), most: Arc::new(AtomicU32::new(most)) }
    }

    /// So many from now on. Those that are open stay open.
    pub fn set(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// One more; `None`: there are too many.
    pub fn permit(&self) -> Option<Permit> {
        let most = self.most.load(Ordering::Relaxed);
        let more = |open| (open < most).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Permit(self.open.clone()))
    }

    /// How many are open.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the stream of a place is.
#[derive(Debug)]
enum State<S> {
    /// There is none.
    Free,
    Here(Box<S>),
    /// With a task.
    Away,
    /// With a task, and closed: it is dropped when it comes back.
    Leaving,
    /// It has failed, and only waits to be closed.
    Failed,
}

#[derive(Debug)]
struct Place<S> {
    generation: u32,
    state: State<S>,
    /// Requests that came while it was away.
    waiting: VecDeque<u32>,
    permit: Option<Permit>,
}

/// What became of the attempt to get a stream.
#[derive(Debug)]
pub enum Taken<S> {
    /// Here it is; [`Streams::give`] it back.
    Stream(Box<S>),
    /// It is with another task; the request was put in line.
    InLine,
    /// There is none by that name, or it has failed.
    None,
}

/// The streams of one queue. `S` is what a stream is.
#[derive(Debug)]
pub struct Streams<S> {
    places: Vec<Place<S>>,
    free: Vec<u32>,
    /// Where generations begin, so that a driver that goes on after a crash does not find other streams under the old names.
    first: u32,
}

impl<S> Default for Streams<S> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), first: RandomState::new().hash_one(0u8) as u32 | 1 }
    }
}

impl<S> Streams<S> {
    /// Opens a stream. Its name is never 0.
    pub fn open(&mut self, stream: Box<S>, permit: Permit) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            let (generation, waiting) = (self.first, VecDeque::new());
            self.places.push(Place { generation, state: State::Free, waiting, permit: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        (place.state, place.permit) = (State::Here(stream), Some(permit));
        u64::from(place.generation) << 32 | u64::from(index)
    }

    /// Takes a stream for `request`, or puts that in line.
    pub fn take(&mut self, id: u64, request: u32) -> Taken<S> {
        let Some(place) = self.place(id) else { return Taken::None };
        match std::mem::replace(&mut place.state, State::Away) {
            State::Here(stream) => Taken::Stream(stream),
            State::Away => {
                place.waiting.push_back(request);
                Taken::InLine
            }
            state => {
                place.state = state;
                Taken::None
            }
        }
    }

    /// A stream comes back; `None`: it has failed. Whoever is in line for it is moved to `next`, oldest first.
    pub fn give(&mut self, id: u64, stream: Option<Box<S>>, next: &mut Vec<u32>) {
        // Its generation is still the same: a place is not given away while its stream is.
        let Some(place) = self.place(id) else { return };
        next.extend(place.waiting.drain(..));
        match (&place.state, stream) {
            (State::Away, Some(stream)) => place.state = State::Here(stream),
            (State::Away, None) => place.state = State::Failed,
            (State::Leaving, _) => self.vacate(id as u32),
            // It was not taken, and nothing becomes of what is there.
            (State::Free | State::Here(_) | State::Failed, _) => {}
        }
    }

    /// Closes a stream. Requests that are in line for it will not find it. False: there is none by that name.
    pub fn close(&mut self, id: u64) -> bool {
        let Some(place) = self.place(id) else { return false };
        match place.state {
            State::Free | State::Leaving => return false,
            State::Away => place.state = State::Leaving,
            State::Here(_) | State::Failed => self.vacate(id as u32),
        }
        true
    }

    /// Closes all.
    pub fn close_all(&mut self) {
        for index in 0..self.places.len() {
            let id = u64::from(self.places[index].generation) << 32 | index as u64;
            self.close(id);
        }
    }

    /// The ring starts, so that none of its requests is anywhere: what a worker that failed has lost is given up.
    pub fn begin(&mut self) {
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            place.waiting.clear();
            match place.state {
                State::Away => place.state = State::Failed,
                State::Leaving => self.vacate(index as u32),
                _ => {}
            }
        }
    }

    fn place(&mut self, id: u64) -> Option<&mut Place<S>> {
        let place = self.places.get_mut(id as u32 as usize)?;
        (u64::from(place.generation) == id >> 32).then_some(place)
    }

    fn vacate(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        (place.state, place.permit) = (State::Free, None);
        // 0 is nobody's generation, and nobody's name.
        place.generation = place.generation.wrapping_add(1).max(1);
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(most: u32) -> (Streams<char>, Limit) {
        (Streams::default(), Limit::new(most))
    }

    fn take(streams: &mut Streams<char>, id: u64) -> Option<Box<char>> {
        match streams.take(id, 0) {
            Taken::Stream(stream) => Some(stream),
            Taken::InLine | Taken::None => None,
        }
    }

    #[test]
    fn requests_wait_in_line_while_the_stream_is_away() {
        let (mut streams, limit) = table(2);
        let id = streams.open(Box::new('a'), limit.permit().unwrap());
        let stream = take(&mut streams, id).unwrap();
        assert!(matches!(streams.take(id, 7), Taken::InLine));
        assert!(matches!(streams.take(id, 8), Taken::InLine));
        let mut next = Vec::new();
        streams.give(id, Some(stream), &mut next);
        assert_eq!(next, [7, 8]);
        assert_eq!(take(&mut streams, id), Some(Box::new('a')));
    }

    #[test]
    fn a_name_is_good_until_it_is_closed_and_never_again() {
        let (mut streams, limit) = table(2);
        let first = streams.open(Box::new('a'), limit.permit().unwrap());
        assert!(first != 0 && first >> 32 != 0);
        assert!(streams.close(first) && !streams.close(first));
        assert_eq!(limit.open(), 0);
        let second = streams.open(Box::new('b'), limit.permit().unwrap());
        assert_eq!(second as u32, first as u32, "the place is used again");
        assert!(take(&mut streams, first).is_none());
        assert!(take(&mut streams, second).is_some());
        assert!(!streams.close(0) && !streams.close(u64::MAX));
    }

    #[test]
    fn a_stream_that_is_closed_while_it_is_away_is_dropped_when_it_comes_back() {
        let (mut streams, limit) = table(1);
        let id = streams.open(Box::new('a'), limit.permit().unwrap());
        let stream = take(&mut streams, id).unwrap();
        assert!(matches!(streams.take(id, 7), Taken::InLine));
        assert!(streams.close(id));
        assert!(!streams.close(id) && take(&mut streams, id).is_none());
        assert!(limit.permit().is_none(), "its memory is still in use");
        let mut next = Vec::new();
        streams.give(id, Some(stream), &mut next);
        assert_eq!((next, limit.open()), (vec![7], 0));
        assert!(matches!(streams.take(id, 7), Taken::None));
    }

    #[test]
    fn a_stream_that_failed_can_only_be_closed() {
        let (mut streams, limit) = table(1);
        let id = streams.open(Box::new('a'), limit.permit().unwrap());
        take(&mut streams, id).unwrap();
        streams.give(id, None, &mut Vec::new());
        assert!(take(&mut streams, id).is_none());
        assert!(limit.permit().is_none());
        assert!(streams.close(id));
        assert!(limit.permit().is_some());
    }

    #[test]
    fn what_was_not_taken_does_not_come_back() {
        let (mut streams, limit) = table(2);
        let (first, second) = (Box::new('a'), Box::new('b'));
        let failed = streams.open(first, limit.permit().unwrap());
        take(&mut streams, failed).unwrap();
        (0..2).for_each(|_| streams.give(failed, None, &mut Vec::new()));
        assert!(streams.close(failed) && limit.open() == 0);
        // The name that the place will have next.
        let free = failed + (1 << 32);
        streams.give(free, None, &mut Vec::new());
        let third = Box::new('c');
        let ids = [third, second].map(|stream| streams.open(stream, limit.permit().unwrap()));
        assert!(ids[0] == free && ids[1] as u32 != ids[0] as u32);
        streams.give(free, None, &mut Vec::new());
        assert_eq!(take(&mut streams, free), Some(Box::new('c')));
    }

    #[test]
    fn what_a_failed_worker_has_lost_is_given_up_when_the_ring_starts_again() {
        let (mut streams, limit) = table(3);
        let ids = ['a', 'b', 'c'].map(|name| streams.open(Box::new(name), limit.permit().unwrap()));
        take(&mut streams, ids[0]).unwrap();
        take(&mut streams, ids[1]).unwrap();
        assert!(matches!(streams.take(ids[0], 7), Taken::InLine));
        streams.close(ids[1]);
        streams.begin();
        assert_eq!(limit.open(), 2);
        assert!(take(&mut streams, ids[0]).is_none() && take(&mut streams, ids[2]).is_some());
        streams.close_all();
        streams.begin();
        assert_eq!(limit.open(), 0);
    }

    #[test]
    fn the_limit_counts_all_queues_of_the_device() {
        let limit = Limit::new(2);
        let (a, b) = (limit.permit(), limit.permit());
        assert!(a.is_some() && b.is_some() && limit.permit().is_none());
        drop(a);
        assert!(limit.permit().is_some());
        assert!(Limit::new(0).permit().is_none());
        limit.set(1);
        assert!(b.is_some() && limit.permit().is_none());
    }
}
