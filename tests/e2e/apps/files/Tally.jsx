import { Button } from "@/components/ui/button"

export default function Tally() {
    return <Button id="tally" onClick={() => updateElement({ count: props.count + 1 })}>Counted {props.count}</Button>
}
