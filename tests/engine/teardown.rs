//! The end of the engine.

#[test]
fn nothing_of_the_engine_is_left_behind() {
    // Alone, it still has something to look at.
    if crate::engine::engine().is_none() {
        return;
    }
    if let Err(why) = crate::engine::end() {
        panic!("{why}");
    }
}
